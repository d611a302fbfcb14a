"""The name of a data set, a file or a tensor becomes data: images, rows of tables, arrays, labels, splits, batches."""
