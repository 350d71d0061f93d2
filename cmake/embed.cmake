# SPDX-License-Identifier: MIT
# kron_embed(OUT pattern...): files become hidden read-only symbols data_NAME[] and data_NAME_end[],
# NAME being the file's with dots and dashes as underscores. A zero byte follows the last.
function(kron_embed out)
    file(GLOB files CONFIGURE_DEPENDS ${ARGN})
    set(made "")
    foreach(file ${files})
        get_filename_component(name ${file} NAME)
        string(REGEX REPLACE "[.-]" "_" name ${name})
        set(asm ${CMAKE_BINARY_DIR}/embed/${name}.s)
        file(CONFIGURE OUTPUT ${asm} @ONLY CONTENT [[
    .section .rodata
    .balign 64
    .globl data_@name@
    .hidden data_@name@
    .type data_@name@, %object
data_@name@:
    .incbin "@file@"
    .globl data_@name@_end
    .hidden data_@name@_end
    .type data_@name@_end, %object
data_@name@_end:
    .byte 0
    .section .note.GNU-stack, "", %progbits
]])
        set_source_files_properties(${asm} PROPERTIES OBJECT_DEPENDS ${file})
        list(APPEND made ${asm})
    endforeach()
    set(${out} ${made} PARENT_SCOPE)
endfunction()
