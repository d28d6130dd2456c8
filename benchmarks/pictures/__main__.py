from benchmarks.pictures.run import main

main()
