# Sets with_wgmma: whether kernels with `wgmma` are built beside the others. They are for sm_90a alone, which nvcc 12.0 and
# newer compile for. A script of its own, so that tests/repo/test_build.py can run it.
set(with_wgmma FALSE)
set(wanted "${CMAKE_CUDA_ARCHITECTURES}")
if(wanted STREQUAL "native")
  set(wanted "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
endif()
if(wanted MATCHES "(^|;)(90a?(-real|-virtual)?|all|all-major)(;|$)" AND NOT CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  set(with_wgmma TRUE)
endif()
