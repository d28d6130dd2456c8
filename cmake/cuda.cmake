# Decides whether the CUDA kernels are built, and for which devices. Sets with_cuda; where it is FALSE, cuda_left_out
# says why. The extension module repeats that at run time, so it must hold no quotes and no semicolons.
include(CheckLanguage)

set(cuda_sources csrc/cuda/driver.cu csrc/cuda/pairwise/products.cu)
foreach(type f32 f64)
  list(APPEND cuda_sources csrc/cuda/sorted/sorted_${type}.cu csrc/cuda/pairwise/pairwise_${type}.cu)
endforeach()

set(with_cuda FALSE)
set(cuda_left_out "")
if(cuda_mode STREQUAL "OFF")
  set(cuda_left_out "it was built with FEC_CUDA=OFF")
elseif(cuda_mode STREQUAL "AUTO")
  include(${CMAKE_CURRENT_LIST_DIR}/gpu.cmake)
  if(NOT gpu_in_sight)  # minutes of compilation for kernels that could not run here
    set(cuda_left_out "no NVIDIA GPU was found when it was built (rebuild with FEC_CUDA=ON pip install .)")
  endif()
endif()

if(NOT cuda_left_out)
  include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)  # before check_language, which would choose its own
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # a compiler that was not found by an earlier run is looked for again
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND CMAKE_VERSION VERSION_LESS 3.23)
    message(FATAL_ERROR "fec_fast: the CUDA kernels need CMake 3.23 or newer, this is ${CMAKE_VERSION}; "
      "pip install cmake, or set FEC_CUDA=OFF")
  elseif(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    enable_language(CUDA)
    set(with_cuda TRUE)
    include(${CMAKE_CURRENT_LIST_DIR}/wgmma.cmake)
    message(STATUS "fec_fast: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}; with wgmma for sm_90a: ${with_wgmma}")
  elseif(cuda_mode STREQUAL "ON")
    message(FATAL_ERROR "fec_fast: FEC_CUDA=ON, but there is no CUDA compiler; put nvcc on the PATH or set CUDACXX, "
      "or use FEC_CUDA=AUTO")
  else()
    set(cuda_left_out "no CUDA compiler was found when it was built")
  endif()
endif()
if(NOT with_cuda)
  message(STATUS "fec_fast: no CUDA kernels: ${cuda_left_out}")
endif()
