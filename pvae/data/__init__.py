"""The name of a data set becomes tensors: MNIST, image folders, pixels, binarization and batches."""
