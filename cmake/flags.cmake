# SPDX-License-Identifier: MIT
# Flags: those of every file, and those of a few.

add_compile_definitions(_GNU_SOURCE=) # empty: a file that defines it too defines the same
if(KRON_SANITIZE)
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:C>:-fsanitize=${KRON_SANITIZE};-fno-sanitize-recover=all>")
    add_link_options(-fsanitize=${KRON_SANITIZE})
endif()

add_library(kron_warnings INTERFACE)
target_compile_options(kron_warnings INTERFACE $<$<COMPILE_LANGUAGE:C>:
    -Wall -Wextra -Wpedantic -Wshadow -Wundef -Wstrict-prototypes -Wmissing-prototypes -Wvla
    -Wno-missing-field-initializers # the rest of a struct is zero: that means defaults
    $<$<BOOL:${KRON_WERROR}>:-Werror
    # gcc's two that depend on what the optimiser sees: their findings change with every flag.
    $<$<C_COMPILER_ID:GNU>:-Wno-error=maybe-uninitialized -Wno-error=format-truncation>>>)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
    set(KRON_X86 TRUE)
endif()

# No -march=native: kernels of an instruction set are chosen at run time, so only their files may
# use it. No -ffast-math: it deletes checks for NaN and changes the process that loads us. The
# definition of an operation, backend/ref, must not depend on which products a compiler fuses.
function(kron_source_flags)
    foreach(source ${ARGN})
        set(flags "")
        if(source MATCHES "/backend/ref/")
            list(APPEND flags -ffp-contract=off)
        elseif(source MATCHES "/backend/cpu/")
            list(APPEND flags -fno-math-errno -fno-trapping-math)
            if(KRON_SANITIZE) # at -O1 tiles of registers are memory, and each access is checked
                list(APPEND flags -O2)
            endif()
        endif()
        if(source MATCHES "_avx2\\.c$")
            list(APPEND flags -mavx2 -mfma -mf16c)
        elseif(source MATCHES "_avxvnni\\.c$")
            list(APPEND flags -mavx2 -mfma -mf16c -mavxvnni)
        elseif(source MATCHES "_avx512\\.c$")
            list(APPEND flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c)
        elseif(source MATCHES "_avx512vnni\\.c$")
            list(APPEND flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c)
        endif()
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
    endforeach()
endfunction()
