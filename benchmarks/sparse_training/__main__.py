from benchmarks.sparse_training.run import main

main()
