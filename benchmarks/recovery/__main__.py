from benchmarks.recovery.run import main

main()
