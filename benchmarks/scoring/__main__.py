from benchmarks.scoring.run import main

main()
