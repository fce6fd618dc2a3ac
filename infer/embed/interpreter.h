/* The interpreter of the process: started on the first use, entered by each call, gone at Py_Finalize. */
#ifndef IRESNET_INTERPRETER_H
#define IRESNET_INTERPRETER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "iresnet_infer.h"

/* Go in: starts the interpreter where there is none, takes its lock. IRESNET_OK, and interpreter_leave has to follow;
 * otherwise the message says why not. May be called with and without the interpreter's lock held. */
iresnet_status interpreter_enter(PyGILState_STATE *held, char *message, size_t size);
void interpreter_leave(PyGILState_STATE held);

/* Whether there is nothing to go into and never will be: the interpreter has ended, or this is a fork. */
int interpreter_gone(char *message, size_t size);

/* infer.interop.c_api.Library of this process; borrowed, to be used between enter and leave. */
PyObject *interpreter_library(void);

#endif
