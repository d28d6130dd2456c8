from benchmarks.study import run
from benchmarks.study.jobs import jobs

run.main(run.Study, jobs, "study.json", run.__doc__)
