from benchmarks.recipes.page import main

main()
