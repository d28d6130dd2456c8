from benchmarks.yolo.run import main

main()
