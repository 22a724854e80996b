# Device code of the GPU kernels: target gpu_device, GPU_ARCHITECTURES (comma-separated), GPU_RUNTIME to link, and where
# the build holds none, GPU_WITHOUT: the sentence that says why.
#
# nvcc is all that it takes: no GPU, no driver and no CUDA torch. The CUDA runtime is linked statically and finds the
# driver when it is first called, so the extension loads on any machine; streams and memory come from torch, through its
# device-generic interface (csrc/bindings/gpu_run.cpp), so no library of a CUDA torch is linked.

set(GPU_ARCHITECTURES "")
set(GPU_RUNTIME "")
set(GPU_WITHOUT "")
if(NOT FASTCONV_CUDA MATCHES "^(on|off|auto)$")
  message(FATAL_ERROR "FASTCONV_CUDA must be on, off or auto, but is '${FASTCONV_CUDA}'.")
endif()

ask_python(TORCH_CUDA "import torch; print(torch.version.cuda or '')")
if(FASTCONV_CUDA STREQUAL "off")
  set(GPU_WITHOUT "it was built with FASTCONV_CUDA=off")
else()
  find_program(FASTCONV_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT FASTCONV_NVCC)
    set(GPU_WITHOUT "nvcc was not found when it was built")
  elseif(FASTCONV_CUDA STREQUAL "auto" AND NOT TORCH_CUDA)
    set(GPU_WITHOUT "torch ${TORCH_VERSION} is a CPU build, and only FASTCONV_CUDA=on builds device code beside one")
  endif()
  if(GPU_WITHOUT AND FASTCONV_CUDA STREQUAL "on")
    message(FATAL_ERROR "FASTCONV_CUDA=on: ${GPU_WITHOUT}.")
  endif()
endif()

if(GPU_WITHOUT)
  message(STATUS "Without device code of the GPU kernels: ${GPU_WITHOUT}.")
  add_library(gpu_device OBJECT csrc/cuda/common/no_device_code.cpp)
  target_include_directories(gpu_device PRIVATE csrc)
  return()
endif()

set(CMAKE_CUDA_COMPILER "${FASTCONV_NVCC}")
set(CMAKE_CUDA_ARCHITECTURES OFF)  # named one by one below
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)

set(architectures ${FASTCONV_CUDA_ARCHS})
string(REPLACE "," ";" architectures "${architectures}")
if(NOT architectures)
  set(architectures 80 90a 100a)
  execute_process(COMMAND "${FASTCONV_NVCC}" --list-gpu-code OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  if(NOT known MATCHES "sm_100")
    list(REMOVE_ITEM architectures 100a)
  endif()
endif()
# Of architectures without features of their own (80) the virtual code too, which drivers translate for newer devices.
foreach(architecture IN LISTS architectures)
  if(NOT architecture MATCHES "^[0-9]+a?$")
    message(FATAL_ERROR "FASTCONV_CUDA_ARCHS takes architectures such as 80 and 90a, but '${architecture}' is among them.")
  endif()
  set(code sm_${architecture})
  if(NOT architecture MATCHES "a$")
    set(code [compute_${architecture},sm_${architecture}])
  endif()
  list(APPEND generated -gencode=arch=compute_${architecture},code=${code})
endforeach()
list(JOIN architectures "," GPU_ARCHITECTURES)
message(STATUS "Device code of the GPU kernels for ${GPU_ARCHITECTURES}, by ${FASTCONV_NVCC}.")

add_subdirectory(csrc/cuda)  # in a scope of its own the same files are CUDA
target_compile_options(gpu_device PRIVATE ${generated})

find_library(FASTCONV_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
find_package(Threads REQUIRED)
# Its symbols stay inside: torch has a CUDA runtime of its own.
set(GPU_RUNTIME "${FASTCONV_CUDART}" -Wl,--exclude-libs,libcudart_static.a Threads::Threads ${CMAKE_DL_LIBS} rt)
