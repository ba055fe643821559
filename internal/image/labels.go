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

// Default names the default image, whatever that is: see [Shelf].
const Default = "default"

// ForLabels returns the name of the image for a job's runs-on labels, "" for the
// default one, and what there is to remark: that it is not the system that a label
// names. override (from -P label=image) comes before the built-in labels; names are
// compared without regard to case. Every label has to be known: a job that asks for
// something we do not have must not run on something else.
func ForLabels(labels []string, override map[string]string, have Shelf) (image, remark string, err error) {
	if len(labels) == 0 {
		return "", "", &LabelError{Reason: "the job names none"}
	}
	lower := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(override)) {
		lower[strings.ToLower(k)] = override[k]
	}
	var by string
	for _, label := range labels {
		name := strings.ToLower(strings.TrimSpace(label))
		given, ok := lower[name]
		if ok && given == "" {
			return "", "", &LabelError{label, "-P gives it no image"}
		}
		if ok {
			if by != "" && image != given {
				return "", "", &LabelError{label, fmt.Sprintf("-P gives it image %q, and label %q image %q: a job has one", given, by, image)}
			}
			image, by = given, label
			continue
		}
		if reason := refused(name); reason != "" {
			return "", "", &LabelError{label, reason}
		}
	}
	if by == "" {
		image, remark = have.choose(labels)
	}
	if image == Default || image == have.Default {
		image = ""
	}
	return image, remark, nil
}

// systems are the labels that name a system, and the recipes for it; the nearest where
// there is none of its own.
var systems = map[string]string{"ubuntu-latest": Ubuntu2404, "ubuntu-slim": Ubuntu2404, "ubuntu-26.04": Ubuntu2404, "ubuntu-24.04": Ubuntu2404,
	"ubuntu-22.04": Ubuntu2204, "ubuntu-20.04": Ubuntu2204, "debian-12": Debian12, "debian-latest": Debian12}

// choose returns the image of the first label that names a system. Which other images
// there are is not remarked where the default one stands for every Ubuntu, as
// Debian's does.
func (s Shelf) choose(labels []string) (image, remark string) {
	if len(s.Recipes) == 0 {
		return s.Default, ""
	}
	for _, label := range labels {
		name := strings.ToLower(strings.TrimSpace(label))
		recipe, ok := systems[name]
		if !ok {
			continue
		}
		image = recipe
		build := ""
		if !slices.Contains(s.Recipes, recipe) {
			image, build = s.Default, fmt.Sprintf("; `hearth image build --recipe %s` makes the one for it", recipe)
		}
		if image != name && image != Debian12 && name != "ubuntu-latest" && name != "ubuntu-slim" {
			remark = fmt.Sprintf("The job asks for '%s' and runs on %s%s.", label, image, build)
		}
		return image, remark
	}
	return s.Default, ""
}

// KnownLabels are those that there are images for without -P or settings.
func KnownLabels() []string {
	return []string{"self-hosted", "linux", "x64", "ubuntu-latest", "ubuntu-slim", "ubuntu-26.04", "ubuntu-24.04", "ubuntu-22.04", "ubuntu-20.04",
		"debian-12", "debian-latest"}
}

// GroupLabel is how a runner group is named among labels: in -P, in the settings of
// a server, and where a job asks for a machine.
func GroupLabel(group string) string { return "group:" + group }

// StandIn is the label of the machines that take jobs with an unknown label for an
// Ubuntu: see [Unknown].
const StandIn = "ubuntu-latest"

// Take says which labels a machine is asked for by that takes a job with these, and
// with a runner group ("" is none). known are the labels that there are. A label that
// nobody knows and that has a part that begins with ubuntu is the name that somebody
// gave to a larger runner, or to a rented one: machines with [StandIn] take its job, which is remarked, unless strict. So
// is the group of a job whose labels will do. Otherwise the error says why not.
func Take(labels []string, group string, known func(label string) bool, strict bool) (have, remarks []string, err error) {
	for _, label := range labels {
		name := strings.ToLower(strings.TrimSpace(label))
		switch reason := refused(name); {
		case known(name):
			have = append(have, label)
		case reason == "":
			return nil, nil, &LabelError{label, "no runner of this server has it"}
		case strict || !slices.ContainsFunc(parts(name), func(p string) bool { return strings.HasPrefix(p, "ubuntu") }) || foreignCPU(name):
			return nil, nil, &LabelError{label, reason}
		default:
			remarks = append(remarks, fmt.Sprintf("Nothing here is known by the label '%s': the job runs on the default image, in a machine of the usual size.", label))
			if !slices.Contains(have, StandIn) {
				have = append(have, StandIn)
			}
		}
	}
	if group == "" {
		return have, remarks, nil
	}
	switch label := GroupLabel(group); {
	case slices.Contains(have, label):
	case known(strings.ToLower(label)):
		have = append(have, label)
	case strict || len(labels) == 0:
		return nil, nil, &LabelError{label, refused(strings.ToLower(label))}
	default:
		remarks = append(remarks, fmt.Sprintf("Nothing here is known by the runner group '%s': the job's labels say where it runs.", group))
	}
	return have, remarks, nil
}

// foreignCPU reports whether a label asks for another processor than the machines
// have.
func foreignCPU(label string) bool {
	return slices.ContainsFunc(parts(label), func(part string) bool {
		return slices.Contains([]string{"arm", "arm64", "aarch64", "armv7", "s390x", "ppc64le", "riscv64"}, part)
	})
}

// parts are the words that a label is made of.
func parts(label string) []string {
	return strings.FieldsFunc(label, func(r rune) bool { return strings.ContainsRune("-_. :/=", r) })
}

// refused says why a label has no image, "" if it has.
func refused(label string) string {
	if slices.Contains(KnownLabels(), label) {
		return ""
	}
	if foreignCPU(label) {
		return "this machine runs x86-64 guests only"
	}
	for _, os := range []string{"windows", "macos"} {
		if label == os || strings.HasPrefix(label, os+"-") {
			return "hearth's machines run Linux; there is no " + os + " image"
		}
	}
	return "no image is known by it; give it one with -P " + label + "=" + Default
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
