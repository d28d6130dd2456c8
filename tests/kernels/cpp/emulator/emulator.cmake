# The CUDA sources compiled with g++ against the emulator (README.md here).
set(emulated_sources)
foreach(name driver sorted/sorted_f32 sorted/sorted_f64 pairwise/pairwise_f32 pairwise/pairwise_f64
    pairwise/products pairwise/warpgroup_products)
  list(APPEND emulated_sources csrc/cuda/${name}.cu)
endforeach()
set_source_files_properties(${emulated_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")

# The scheduler is not under test: it is compiled without the sanitizers, and a definition says which one is in use.
add_library(emulator OBJECT tests/kernels/cpp/emulator/emulator.cpp tests/kernels/cpp/emulator/runtime.cpp
  tests/kernels/cpp/emulator/tensor_cores.cpp)
target_compile_options(emulator PRIVATE -fno-sanitize=all)
add_library(emulated STATIC ${emulated_sources} $<TARGET_OBJECTS:emulator>)
foreach(target emulator emulated)
  target_include_directories(${target} PUBLIC csrc tests/kernels/cpp/emulator)
  target_compile_definitions(${target} PUBLIC FEC_EMULATOR FEC_WITH_WGMMA)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unknown-pragmas)
  if(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*address")
    target_compile_definitions(${target} PUBLIC FEC_ASAN)
  elseif(CMAKE_CXX_FLAGS MATCHES "-fsanitize=[a-z,]*thread")
    target_compile_definitions(${target} PUBLIC FEC_TSAN)
  endif()
endforeach()

foreach(name cuda_test products_test planted_test)
  add_executable(${name} tests/kernels/cpp/${name}.cpp)
  target_link_libraries(${name} PRIVATE emulated)
  target_compile_options(${name} PRIVATE -Wno-unknown-pragmas)
endforeach()
