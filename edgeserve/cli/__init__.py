"""The command line: parsing and printing, no logic. Each command's module is imported when it is asked for."""
