package image

// CheckSBOM lets the tests with real images, which live outside, check them.
var CheckSBOM = checkSBOM
