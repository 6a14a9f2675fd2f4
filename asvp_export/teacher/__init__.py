"""From a file or a module to a runnable teacher, and what can be done with one."""
