from benchmarks.imports.run import main

main()
