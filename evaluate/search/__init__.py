"""A model on a collection of images: words to images, and words to the pixels that they name."""
