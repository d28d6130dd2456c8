# Finds a CUDA compiler, and chooses for which devices it builds.
include(CheckLanguage)

set(cuda_sources csrc/cuda/driver.cu)
foreach(type f32 f64)
  list(APPEND cuda_sources csrc/cuda/sorted/sorted_${type}.cu csrc/cuda/pairwise/pairwise_${type}.cu)
endforeach()

include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)  # before check_language, which would settle on its own
check_language(CUDA)
if(CMAKE_CUDA_COMPILER AND CMAKE_VERSION VERSION_LESS 3.23)
  message(FATAL_ERROR "fec_fast: the CUDA kernels need CMake 3.23 or newer, this is ${CMAKE_VERSION}; "
    "pip install cmake, or set FEC_CUDA=OFF")
elseif(CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  enable_language(CUDA)
  message(STATUS "fec_fast: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}")
elseif(FEC_CUDA STREQUAL "ON")
  message(FATAL_ERROR "fec_fast: FEC_CUDA=ON, but there is no CUDA compiler; put nvcc on the PATH or set CUDACXX, "
    "or use FEC_CUDA=AUTO")
else()
  message(STATUS "fec_fast: no CUDA compiler, so no CUDA kernels")
endif()
