# asvp_find_cuda(missing): looks for nvcc and all that it needs to build libasvp. Sets CMAKE_CUDA_COMPILER,
# CMAKE_CUDA_ARCHITECTURES (unless the caller did), ASVP_CUDART_STATIC, and `missing` to nothing; or
# `missing` to what is not there, in words, and CMAKE_CUDA_COMPILER to nothing.
#
# It serves toolkits and pip's packages (nvidia-cuda-nvcc and those it needs), where the parts come one by one: so it tries
# them before enable_language(CUDA), whose failure would end the configuration.

set(ASVP_CUDA_WANTED 75 80 86 89 90 100 120)

function(asvp_find_cuda missing)
  set(${missing} "" PARENT_SCOPE)
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  else()
    find_program(ASVP_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
    mark_as_advanced(ASVP_NVCC)
    set(nvcc ${ASVP_NVCC})
  endif()
  if(NOT nvcc)
    set(${missing} "nvcc was not found" PARENT_SCOPE)
    return()
  endif()

  # nvcc may be a link or a script; it tells where its toolkit is.
  set(trial ${CMAKE_CURRENT_BINARY_DIR}/asvp_cuda_trial.cu)
  file(WRITE ${trial} "#include <cuda_runtime.h>\n__global__ void f() {}\nint main() { f<<<1, 1>>>(); return 0; }\n")
  execute_process(COMMAND ${nvcc} --dryrun ${trial} OUTPUT_VARIABLE said ERROR_VARIABLE said)
  string(REGEX MATCH "TOP=([^\r\n]*)" found "${said}")
  get_filename_component(root "${CMAKE_MATCH_1}" REALPATH)
  set(folders ${root}/lib64 ${root}/lib ${root}/targets/x86_64-linux/lib ${root}/targets/sbsa-linux/lib)
  find_library(ASVP_CUDART_STATIC cudart_static PATHS ${folders} NO_DEFAULT_PATH)
  mark_as_advanced(ASVP_CUDART_STATIC)
  if(NOT ASVP_CUDART_STATIC)
    find_library(ASVP_CUDART_STATIC cudart_static)
  endif()
  if(NOT ASVP_CUDART_STATIC)
    set(${missing} "${nvcc} comes without libcudart_static.a" PARENT_SCOPE)
    set(CMAKE_CUDA_COMPILER "" PARENT_SCOPE)
    return()
  endif()

  execute_process(COMMAND ${nvcc} -std=c++17 -ccbin ${CMAKE_CXX_COMPILER} -c ${trial} -o ${trial}.o
    RESULT_VARIABLE failed OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if(failed)
    string(STRIP "${said}" said)
    string(REGEX REPLACE "\n.*" "" said "${said}")
    set(${missing} "${nvcc} does not compile: ${said}" PARENT_SCOPE)
    set(CMAKE_CUDA_COMPILER "" PARENT_SCOPE)
    return()
  endif()

  if(NOT CMAKE_CUDA_ARCHITECTURES)
    # Machine code for each that this nvcc knows, and PTX of the last for what comes after.
    execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known)
    set(chosen "")
    foreach(architecture ${ASVP_CUDA_WANTED})
      if("${known}" MATCHES "compute_${architecture}[^0-9]")
        list(APPEND chosen ${architecture})
      endif()
    endforeach()
    list(POP_BACK chosen last)
    list(TRANSFORM chosen APPEND -real)
    list(APPEND chosen ${last})
    set(CMAKE_CUDA_ARCHITECTURES ${chosen} CACHE STRING "GPU architectures" FORCE)
  endif()
  set(CMAKE_CUDA_COMPILER ${nvcc} PARENT_SCOPE)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER} PARENT_SCOPE)
endfunction()
