# SPDX-License-Identifier: Apache-2.0
#
# build.cmake - liblath_cuda.so, where there is an nvcc that works. Included by the CMakeLists.txt of the project.
#
# The object needs torch's two libraries and the C library, and no library of CUDA: the runtime is inside, and cuBLAS is looked up
# among the libraries that torch has loaded. So one file serves the CUDA builds of torch of every CUDA version that the driver runs.

# What the kernels are written for: mma.sync and cp.async need 8.0. The last one is compiled to PTX too, which newer GPUs translate.
set(cuda_wanted 80 86 89 90 100 120)

# Sets `compiler` to nvcc, or to a false value, with the reason in `reason`. nvcc is often installed, but not in PATH.
function(lath_find_nvcc compiler reason)
  find_program(LATH_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(LATH_NVCC)
  set(found ${CMAKE_CUDA_COMPILER})
  if(NOT found AND NOT DEFINED ENV{CUDACXX} AND LATH_NVCC)
    set(ENV{CUDACXX} ${LATH_NVCC})
  endif()
  if(NOT found)
    set(why "no nvcc in PATH, in CUDA_HOME or in /usr/local/cuda")
    if(DEFINED ENV{CUDACXX})
      include(CheckLanguage)
      check_language(CUDA)
      set(found ${CMAKE_CUDA_COMPILER})
      set(why "$ENV{CUDACXX} compiles no test program")
    endif()
  endif()
  set(${compiler} ${found} PARENT_SCOPE)
  set(${reason} ${why} PARENT_SCOPE)
endfunction()

# Sets `architectures` for CMake, and `text` for people.
function(lath_choose_architectures architectures text)
  set(chosen ${LATH_CUDA_ARCHITECTURES})
  if(NOT chosen)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
    foreach(arch ${cuda_wanted})
      if(known MATCHES "sm_${arch}[\r\n]")
        list(APPEND chosen ${arch})
      endif()
    endforeach()
  endif()
  list(POP_BACK chosen last)
  set(names ${chosen} ${last})
  list(TRANSFORM names PREPEND "sm_")
  list(JOIN names ", " names)
  list(TRANSFORM chosen APPEND "-real")
  set(${architectures} ${chosen} ${last} PARENT_SCOPE)
  set(${text} "${names} and PTX of compute_${last}" PARENT_SCOPE)
endfunction()

set(lath_nvcc "")
set(lath_cuda_reason "LATH_CUDA is OFF")
if(LATH_CUDA)
  lath_find_nvcc(lath_nvcc lath_cuda_reason)
endif()
if(NOT lath_nvcc)
  if(LATH_CUDA AND NOT LATH_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "LATH_CUDA is ${LATH_CUDA}, but ${lath_cuda_reason}.")
  endif()
  message(NOTICE "lath: without CUDA (${lath_cuda_reason})")
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES OFF) # lath_cuda brings its own
endif()
set(CMAKE_CUDA_COMPILER ${lath_nvcc})
enable_language(CUDA)
lath_choose_architectures(cuda_architectures cuda_targets)
message(NOTICE "lath: with CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${cuda_targets}")

file(GLOB_RECURSE cuda_kernels CONFIGURE_DEPENDS cuda/*.cu)
file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS cuda/*.c)
set(cuda_headers ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})

add_library(lath_cuda_kernels OBJECT ${cuda_kernels})
set_target_properties(lath_cuda_kernels PROPERTIES
  CUDA_ARCHITECTURES "${cuda_architectures}" CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
  CUDA_VISIBILITY_PRESET hidden)
target_include_directories(lath_cuda_kernels PRIVATE ops cuda)
target_compile_options(lath_cuda_kernels PRIVATE
  # The generated host code is not held to more than this.
  $<$<BOOL:${CMAKE_COMPILE_WARNING_AS_ERROR}>:-Werror=all-warnings>
  -Xcompiler=-Wall,-Wextra,-fno-exceptions,-fno-rtti,-ffile-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=
  --threads=0)

# The host side of the kernels.
add_library(lath_cuda_entries OBJECT ${cuda_sources})
target_include_directories(lath_cuda_entries PRIVATE ops cuda)
target_include_directories(lath_cuda_entries SYSTEM PRIVATE ${cuda_headers})
target_link_libraries(lath_cuda_entries PRIVATE lath_options)

lath_add_stub(torch_cuda_stub torch_cuda SHIM_CUDA_FUNCTIONS)
add_library(lath_cuda MODULE ${cuda_binding_sources})
target_include_directories(lath_cuda PRIVATE ops cuda)
target_compile_definitions(lath_cuda PRIVATE "LATH_CUDA_TARGETS=\"${cuda_targets}\"")
find_library(LATH_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
mark_as_advanced(LATH_CUDART)
target_link_libraries(lath_cuda PRIVATE
  lath_options lath_binding lath_cuda_entries lath_cuda_kernels lath_core torch_stub torch_cuda_stub ${LATH_CUDART} ${CMAKE_DL_LIBS} pthread rt stdc++)
# The kernels hold no C++ beyond templates. Of the C++ runtime, which torch brings along, nvcc's own code around them wants two
# functions that have always been there.
set_target_properties(lath_cuda PROPERTIES LINKER_LANGUAGE C CUDA_RUNTIME_LIBRARY None)
# What it takes from lath_core and from the runtime of CUDA stays inside; liblath_cpu.so has its own.
target_link_options(lath_cuda PRIVATE -Wl,--exclude-libs,ALL)
lath_set_plugin_options(lath_cuda)
add_dependencies(lath_plugin lath_cuda)
