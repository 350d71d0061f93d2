# SPDX-License-Identifier: MIT
# What `cmake --install` copies: headers, libraries, programs, kron.pc and a CMake package.

include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/kron)

install(DIRECTORY include/kron DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h)
install(TARGETS kron EXPORT kronTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${archive} DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS ${installed} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(EXPORT kronTargets NAMESPACE kron:: DESTINATION ${package})

configure_package_config_file(cmake/kronConfig.cmake.in ${CMAKE_BINARY_DIR}/kronConfig.cmake
    INSTALL_DESTINATION ${package} PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/kronConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/kronConfig.cmake ${CMAKE_BINARY_DIR}/kronConfigVersion.cmake
        DESTINATION ${package})

list(TRANSFORM KRON_STATIC_LIBS PREPEND -l OUTPUT_VARIABLE private)
list(JOIN private " " KRON_PC_PRIVATE)
file(RELATIVE_PATH KRON_PC_UP /x/${CMAKE_INSTALL_LIBDIR}/pkgconfig /x) # wherever it is installed
configure_file(cmake/kron.pc.in ${CMAKE_BINARY_DIR}/kron.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/kron.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
