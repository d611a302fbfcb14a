"""What a table is: its columns, how they are parsed and written, its rules, and the one way from fields to x and back.

From the ground up:

    reading   how files are read, declared once
    column    the types of columns, each of which fits, parses and writes itself
    rule      laws of rows: functions, identities, orders, flags; parts, those of one column
    codec     from the columns of a file to those of x, and back
    search    finds laws in training rows; said reads those of --rules; rules judges them and takes them out of the data
    schema    what the data mean: columns, rules, labels, constants
    parsing   a file or a data frame becomes values, and rows that cannot be rows of the table are named
"""
