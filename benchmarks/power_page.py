def write(header, lines): pass
