from benchmarks.int8.run import main

main()
