// Package hearth is Hearth as a library.
package hearth
