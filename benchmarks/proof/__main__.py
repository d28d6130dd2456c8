from benchmarks.proof.run import main

main()
