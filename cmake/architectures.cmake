# Sets the architectures of the CUDA kernels, unless CUDAARCHS or CMAKE_CUDA_ARCHITECTURES does: those of the GPUs in
# this machine; without one, every major generation, and PTX for later ones. A script of its own, so that
# tests/repo/test_build.py can run it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities ERROR_QUIET RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT failed AND capabilities MATCHES "^[0-9.\n]+$")
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REPLACE "\n" ";" CMAKE_CUDA_ARCHITECTURES "${capabilities}")
    list(REMOVE_DUPLICATES CMAKE_CUDA_ARCHITECTURES)
    foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
      if(architecture LESS 75)  # tensor cores as the kernels use them began there, and nvcc 13 knows nothing older
        message(STATUS "fec_fast: no CUDA kernels for the GPU of sm_${architecture}: the oldest is sm_75")
        list(REMOVE_ITEM CMAKE_CUDA_ARCHITECTURES ${architecture})
      endif()
    endforeach()
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES all-major)
  endif()
endif()
