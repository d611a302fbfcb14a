"""The name of a data set, a file or a tensor becomes data: images, tables, arrays, labels, splits, pixels, batches."""
