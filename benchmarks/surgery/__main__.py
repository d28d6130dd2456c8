from benchmarks.surgery.run import main

main()
