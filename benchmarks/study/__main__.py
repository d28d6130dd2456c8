from benchmarks.study import run
from benchmarks.study.jobs import jobs
from benchmarks.study.page import write

run.main(run.Study, jobs, "study.json", run.__doc__, write)
