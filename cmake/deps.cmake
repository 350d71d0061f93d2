# SPDX-License-Identifier: MIT
# kron_deps: the libraries below libkron. KRON_STATIC_LIBS: their names, for who links libkron.a.

add_library(kron_deps INTERFACE)
set(KRON_STATIC_LIBS "")

find_package(OpenMP REQUIRED COMPONENTS C)
target_link_libraries(kron_deps INTERFACE OpenMP::OpenMP_C)
list(APPEND KRON_STATIC_LIBS ${OpenMP_C_LIB_NAMES})

function(kron_dep library header package)
    find_library(KRON_LIB_${library} ${library})
    find_path(KRON_INCLUDE_${library} ${header})
    if(NOT KRON_LIB_${library} OR NOT KRON_INCLUDE_${library})
        message(FATAL_ERROR "${library} was not found; on Debian: apt install ${package}")
    endif()
    target_link_libraries(kron_deps INTERFACE ${KRON_LIB_${library}})
    target_include_directories(kron_deps SYSTEM INTERFACE ${KRON_INCLUDE_${library}})
    set(KRON_STATIC_LIBS ${KRON_STATIC_LIBS} ${library} PARENT_SCOPE)
endfunction()

kron_dep(dnnl dnnl.h libdnnl-dev) # oneDNN 2.x or 3.x
kron_dep(jansson jansson.h libjansson-dev)
kron_dep(png png.h libpng-dev)
kron_dep(jpeg jpeglib.h libjpeg-dev)
kron_dep(utf8proc utf8proc.h libutf8proc-dev)
target_link_libraries(kron_deps INTERFACE m)
list(APPEND KRON_STATIC_LIBS m)
list(REMOVE_DUPLICATES KRON_STATIC_LIBS)
