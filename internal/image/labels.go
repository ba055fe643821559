package image

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A LabelError says why there is no image for a runs-on label.
type LabelError struct {
	Label  string
	Reason string // with what to do about it
}

func (e *LabelError) Error() string { return fmt.Sprintf("runs-on label %q: %s", e.Label, e.Reason) }

// ForLabels returns the name of the image for a job's runs-on labels. override
// (from -P label=image) comes before the built-in labels; names are compared
// without regard to case. Every label has to be known: a job that asks for
// something we do not have must not run on something else.
func ForLabels(labels []string, override map[string]string) (string, error) {
	if len(labels) == 0 {
		return "", &LabelError{Reason: "the job names none"}
	}
	lower := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(override)) {
		lower[strings.ToLower(k)] = override[k]
	}
	image, by := "", ""
	for _, label := range labels {
		name := strings.ToLower(strings.TrimSpace(label))
		given, ok := lower[name]
		if ok && given == "" {
			return "", &LabelError{label, "-P gives it no image"}
		}
		if ok {
			if image != "" && image != given {
				return "", &LabelError{label, fmt.Sprintf("-P gives it image %q, and label %q image %q: a job has one", given, by, image)}
			}
			image, by = given, label
			continue
		}
		if reason := refused(name); reason != "" {
			return "", &LabelError{label, reason}
		}
	}
	if image == "" {
		image = DefaultName
	}
	return image, nil
}

// refused says why a label has no image, "" if it has.
func refused(label string) string {
	switch label {
	case "ubuntu-latest", "ubuntu-24.04", "ubuntu-22.04", "debian-12", "debian-latest", "self-hosted", "linux", "x64":
		return ""
	case "arm64", "arm":
		return "this machine runs x86-64 guests only"
	}
	for _, os := range []string{"windows", "macos"} {
		if label == os || strings.HasPrefix(label, os+"-") {
			return "hearth's machines run Linux; there is no " + os + " image"
		}
	}
	return "no image is known by it; give it one with -P " + label + "=" + DefaultName
}

// FindAgent returns the path of the guest agent that belongs to the running
// program: hearth-guest beside it.
func FindAgent() (string, error) {
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return "", fmt.Errorf("looking for the guest agent: %w", err)
	}
	path := filepath.Join(filepath.Dir(exe), "hearth-guest")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the guest agent is not beside this program: %w: `make build` leaves both in bin/", err)
	}
	return path, nil
}
