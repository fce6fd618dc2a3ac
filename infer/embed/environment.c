#define _GNU_SOURCE
#include "environment.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <patchlevel.h>

#include "iresnet_infer.h"

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define PYTHON_VERSION STRING(PY_MAJOR_VERSION) "." STRING(PY_MINOR_VERSION)

/* As far as it fits; a path is never cut silently, since a cut one does not exist. */
#define SAY(...) snprintf(message, size, __VA_ARGS__)
#pragma GCC diagnostic ignored "-Wformat-truncation"

static void up(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = 0;
}

int package_folder(char folder[PATH_BYTES], char *message, size_t size)
{
    Dl_info here;
    char *real = dladdr((const void *)(uintptr_t)iresnet_version, &here) ? realpath(here.dli_fname, NULL) : NULL;
    if (!real) {
        SAY("the file of libiresnet_infer cannot be found; it lies where it was not loaded from");
        return 0;
    }
    up(real);
    const int length = snprintf(folder, PATH_BYTES, "%s/iresnet-infer", real);
    free(real);
    char package[PATH_BYTES + 32];
    snprintf(package, sizeof package, "%s/infer/__init__.py", folder);
    if (length >= PATH_BYTES || access(package, R_OK) != 0) {
        SAY("%s: expected this library's own package there, found none. Install again with make embed PREFIX=, and keep "
            "the folder iresnet-infer beside the library", package);
        return 0;
    }
    return 1;
}

/* Line of a small text file that begins with key, without it; 0 where there is none. */
static int find_line(const char *path, const char *key, char *value, size_t size)
{
    FILE *file = fopen(path, "re");
    int found = 0;
    while (file && !found && fgets(value, (int)size, file))
        if (strncmp(value, key, strlen(key)) == 0) {
            memmove(value, value + strlen(key), strlen(value + strlen(key)) + 1);
            value[strcspn(value, "\r\n")] = 0;
            found = 1;
        }
    if (file)
        fclose(file);
    return found;
}

/* "3.12.1" of "version = 3.12.1" (venv) or "version_info = 3.12.1.final.0" (virtualenv, uv). */
static int venv_version(const char *root, char *version, size_t size)
{
    char path[PATH_BYTES + 16], line[PATH_BYTES];
    snprintf(path, sizeof path, "%s/pyvenv.cfg", root);
    if (!find_line(path, "version = ", line, sizeof line) && !find_line(path, "version_info = ", line, sizeof line))
        return 0;
    int major = 0, minor = 0;
    if (sscanf(line, "%d.%d", &major, &minor) != 2)
        return 0;
    snprintf(version, size, "%d.%d", major, minor);
    return 1;
}

static int is_ours(const char *python, const char *from, char *message, size_t size)
{
    char root[PATH_BYTES], version[32], library[PATH_BYTES + 32];
    if (access(python, X_OK) != 0) {
        SAY("%s: expected the python executable of an environment, found nothing that can be run at '%s'", from, python);
        return 0;
    }
    /* The environment is what the path names; a link in it leads to the Python that it was made from. */
    snprintf(root, sizeof root, "%s", python);
    up(root);
    up(root);
    int known = venv_version(root, version, sizeof version);
    if (!known) {
        char *real = realpath(python, NULL), *name = real ? strrchr(real, '/') : NULL;
        int major = 0, minor = 0;
        if (name && sscanf(name, "/python%d.%d", &major, &minor) == 2) {
            snprintf(version, sizeof version, "%d.%d", major, minor);
            known = 1;
        }
        const char *given = strrchr(python, '/');
        const int named = (name && strncmp(name, "/python", 7) == 0) || (given && strncmp(given, "/python", 7) == 0);
        if (real && !known && named) {
            up(real);
            up(real);
            snprintf(library, sizeof library, "%s/lib/python" PYTHON_VERSION, real);
            known = access(library, R_OK) == 0;
            snprintf(version, sizeof version, "%s", PYTHON_VERSION);
        }
        free(real);
    }
    if (!known) {
        SAY("%s: expected the executable of a Python " PYTHON_VERSION " or of a virtual environment made with it, found "
            "'%s', which is neither", from, python);
        return 0;
    }
    if (strcmp(version, PYTHON_VERSION) != 0) {
        SAY("%s: this library holds Python " PYTHON_VERSION ", found Python %s at '%s'; choose an environment of "
            PYTHON_VERSION ", or build the library with that Python", from, version, python);
        return 0;
    }
    return 1;
}

int choose_python(const char *folder, char python[PATH_BYTES], char *message, size_t size)
{
    const char *chosen = getenv("IRESNET_PYTHON");
    char file[PATH_BYTES + 16], from[PATH_BYTES + 16];
    snprintf(file, sizeof file, "%s/environment", folder);
    if (chosen) {
        if (snprintf(python, PATH_BYTES, "%s", chosen) >= PATH_BYTES || python[0] != '/') {
            SAY("IRESNET_PYTHON: expected an absolute path of less than %d bytes, found '%s'", PATH_BYTES, chosen);
            return 0;
        }
        return is_ours(python, "IRESNET_PYTHON", message, size);
    }
    if (!find_line(file, "python = ", python, PATH_BYTES)) {
        SAY("%s: expected a line 'python = PATH' with the python executable of an environment; set IRESNET_PYTHON", file);
        return 0;
    }
    snprintf(from, sizeof from, "%s (or set IRESNET_PYTHON)", file);
    return is_ours(python, from, message, size);
}
