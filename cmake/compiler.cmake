# Whether there is a C++ compiler that works. Sets with_compiler; ends the configuration where one is required.
include(CheckLanguage)

set(with_compiler TRUE)
if(NOT CMAKE_CXX_COMPILER)
  unset(CMAKE_CXX_COMPILER CACHE)  # one that was not found by an earlier run is looked for again
  check_language(CXX)
  if(NOT CMAKE_CXX_COMPILER)
    set(with_compiler FALSE)
  endif()
  unset(CMAKE_CXX_COMPILER CACHE)  # it lacks the arguments that CXX may hold; enable_language finds them
endif()
if(NOT with_compiler)
  set(tried "CXX is not set")
  if(DEFINED ENV{CXX})
    set(tried "CXX=$ENV{CXX}")
  endif()
  if(FEC_TESTS OR native_mode STREQUAL "ON" OR cuda_mode STREQUAL "ON")
    message(FATAL_ERROR "fec_fast: no C++ compiler that works was found (${tried}), and FEC_NATIVE=ON, FEC_CUDA=ON or "
      "FEC_TESTS=ON needs one; Debian: apt install g++, macOS: xcode-select --install")
  endif()
  message(WARNING "fec_fast: no C++ compiler that works was found (${tried}): installed WITHOUT the compiled kernels, "
    "entropies will be computed by torch's operators. FEC_NATIVE=ON makes this an error.")
endif()
