# SPDX-License-Identifier: MIT
# ctest labels: unit, fuzz, kernel, golden, quality, cli.

# Waiting threads sleep: several tests run at a time.
set(test_environment OMP_WAIT_POLICY=passive)

function(kron_test_program name)
    add_executable(${name} ${ARGN})
    target_link_libraries(${name} PRIVATE kron_warnings kron_internal)
    target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/unit)
    target_compile_definitions(${name} PRIVATE KRON_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                               KRON_SHARED_DIR="${PROJECT_SOURCE_DIR}/../shared")
endfunction()

function(kron_test name label)
    add_test(NAME ${name} COMMAND ${ARGN})
    set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 600
                         ENVIRONMENT "${test_environment}")
endfunction()

# Without KRON_FUZZ a target is called with its corpus and a fixed number of changed copies.
set(fuzz_corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus)
file(GLOB tests CONFIGURE_DEPENDS tests/fuzz/fuzz_*.c)
foreach(source ${tests})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE fuzz_ "" topic ${name})
    if(KRON_FUZZ)
        kron_test_program(${name} ${source})
        target_sources(${name} PRIVATE tests/fuzz/no_cpu.c)
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
        kron_test(${name} fuzz ${name} -runs=0 ${fuzz_corpus}/${topic})
    else()
        kron_test_program(${name} ${source} tests/fuzz/replay_main.c)
        kron_test(${name} fuzz ${name} ${fuzz_corpus}/${topic} 300)
    endif()
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
endforeach()
if(KRON_FUZZ)
    target_compile_options(kron_objects PRIVATE $<$<COMPILE_LANGUAGE:C>:-fsanitize=fuzzer-no-link>)
    return()
endif()

find_library(KRON_LIB_cmocka cmocka)
if(NOT KRON_LIB_cmocka)
    message(FATAL_ERROR "cmocka was not found; on Debian: apt install libcmocka-dev; "
                        "or build without tests: -DKRON_TESTS=OFF")
endif()

file(GLOB tests CONFIGURE_DEPENDS tests/unit/test_*.c)
foreach(source ${tests})
    get_filename_component(name ${source} NAME_WE)
    kron_test_program(${name} ${source})
    target_link_libraries(${name} PRIVATE ${KRON_LIB_cmocka})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    kron_test(${name} unit ${name})
endforeach()

file(GLOB sources CONFIGURE_DEPENDS tests/kernel/*.c)
if(sources)
    kron_test_program(kron-kernels ${sources})
    if(KRON_SANITIZE) # slow there: a few cases of each operation
        kron_test(kron-kernels kernel kron-kernels --cases 20)
    else()
        kron_test(kron-kernels kernel kron-kernels)
    endif()
endif()

file(GLOB sources CONFIGURE_DEPENDS tests/golden/*.c)
if(sources)
    kron_test_program(kron-golden ${sources})
    foreach(folder tests/golden/data models/golden ../shared/reference)
        if(EXISTS ${PROJECT_SOURCE_DIR}/${folder})
            string(REGEX REPLACE "^\\.\\./" "" name ${folder})
            kron_test(golden/${name} golden kron-golden ${PROJECT_SOURCE_DIR}/${folder})
        endif()
    endforeach()
endif()

# The floors leave room for other processors: docs/int8.md has what was measured.
file(GLOB sources CONFIGURE_DEPENDS tests/quality/*.c)
if(sources)
    kron_test_program(kron-quality ${sources})
    set(models ${PROJECT_SOURCE_DIR}/models)
    foreach(adapter none lokr-neon)
        set(lora "")
        if(NOT adapter STREQUAL none)
            set(lora --lora ${models}/${adapter}.safetensors)
        endif()
        kron_test(quality/int8-${adapter} quality kron-quality ${models}/emoji-sd.safetensors
                  ${lora} --steps 8 --prompt "a cat face" --most-error 0.03 --least-psnr 24)
    endforeach()
endif()

if(TARGET sd-cli)
    add_subdirectory(tests/cli)
endif()
