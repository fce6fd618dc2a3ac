/* Which Python the library starts, and whether it is one that it can hold. Reads files only. */
#ifndef IRESNET_ENVIRONMENT_H
#define IRESNET_ENVIRONMENT_H

#include <stddef.h>

#define PATH_BYTES 4096

/* The folder beside the library that holds the package infer and the name of the installed Python; 0 and a message
 * where it cannot be found. */
int package_folder(char folder[PATH_BYTES], char *message, size_t size);

/* The executable to start: IRESNET_PYTHON, else what was installed; 0 and a message where it does not exist, is of
 * another version than the one that this library is linked with, or is no Python at all. */
int choose_python(const char *folder, char python[PATH_BYTES], char *message, size_t size);

#endif
