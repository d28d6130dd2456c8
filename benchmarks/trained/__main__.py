from benchmarks.trained.run import main

main()
