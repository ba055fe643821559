package image

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
)

const baseName = "base.erofs"
const toolsName = "tools.erofs"

// DefaultName is the name of the image that jobs get unless told otherwise.
const DefaultName = "debian-12"

func baseInputs(extra []string) string { return hashStrings("base", "0", extra...) }
func toolsInputs() string              { return hashStrings("tools", "0") }

func (b *builder) buildBase(ctx context.Context, dir string) (map[string]string, error) {
	return nil, errors.New("not there yet")
}
func (b *builder) buildTools(ctx context.Context, dir string) (map[string]string, error) {
	return nil, errors.New("not there yet")
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

// cleanPackages checks, sorts and uniques package names.
func cleanPackages(list []string) ([]string, error) {
	for _, p := range list {
		if !packageName.MatchString(p) {
			return nil, fmt.Errorf("%q is not a Debian package name", p)
		}
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return slices.Compact(list), nil
}
