from benchmarks.defaults.run import main

main()
