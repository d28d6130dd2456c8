from benchmarks.large.run import main

main()
