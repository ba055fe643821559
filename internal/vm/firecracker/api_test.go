package firecracker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// description is the part of Firecracker's published API description that says
// what may be sent.
type description struct {
	Paths       map[string]map[string]operation `yaml:"paths"`
	Definitions map[string]*schema              `yaml:"definitions"`
}

type operation struct {
	Parameters []struct {
		Name, In string
		Required bool
		Schema   *schema
	} `yaml:"parameters"`
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       string             `yaml:"type"`
	Required   []string           `yaml:"required"`
	Properties map[string]*schema `yaml:"properties"`
	Items      *schema            `yaml:"items"`
	Enum       []any              `yaml:"enum"`
	Minimum    *float64           `yaml:"minimum"`
	Maximum    *float64           `yaml:"maximum"`
}

// published reads the description, which is not ours to keep a copy of.
func published(t *testing.T) *description {
	t.Helper()
	dir := os.Getenv("HEARTH_CONFORMANCE")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "shared", "conformance")
	}
	b, err := os.ReadFile(filepath.Join(dir, "firecracker", "firecracker.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("SKIPPED, NOT PASSED: no published description of Firecracker's API: %v: set HEARTH_CONFORMANCE to the directory with firecracker/firecracker.yaml", err)
	} else if err != nil {
		t.Fatal(err)
	}
	var d description
	if err := yaml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Paths) < 20 || len(d.Definitions) < 20 {
		t.Fatalf("a description with %d paths and %d definitions", len(d.Paths), len(d.Definitions))
	}
	return &d
}

// check returns what is wrong with a request.
func (d *description) check(r seen) []string {
	for path, methods := range d.Paths {
		params, ok := matchPath(path, r.Path)
		if !ok {
			continue
		}
		op, ok := methods[strings.ToLower(r.Method)]
		if !ok {
			return []string{"no such method"}
		}
		var bad []string
		body := false
		for _, p := range op.Parameters {
			if p.In != "body" {
				continue
			}
			body = true
			if r.Body == nil {
				if p.Required {
					bad = append(bad, "the body is missing")
				}
				continue
			}
			var v any
			if err := json.Unmarshal(r.Body, &v); err != nil {
				return []string{err.Error()}
			}
			bad = append(bad, d.value("body", p.Schema, v)...)
			for name, value := range params {
				if m, ok := v.(map[string]any); ok && m[name] != value {
					bad = append(bad, fmt.Sprintf("%s is %q in the path and %q in the body", name, value, m[name]))
				}
			}
		}
		if !body && r.Body != nil {
			bad = append(bad, "a body where none is expected")
		}
		return bad
	}
	return []string{"no such path"}
}

func matchPath(pattern, path string) (map[string]string, bool) {
	a, b := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(a) != len(b) {
		return nil, false
	}
	params := map[string]string{}
	for i := range a {
		if name, ok := strings.CutPrefix(a[i], "{"); ok {
			params[strings.TrimSuffix(name, "}")] = b[i]
		} else if a[i] != b[i] {
			return nil, false
		}
	}
	return params, true
}

func (d *description) value(at string, s *schema, v any) []string {
	for s != nil && s.Ref != "" {
		s = d.Definitions[strings.TrimPrefix(s.Ref, "#/definitions/")]
	}
	if s == nil {
		return []string{at + ": no schema"}
	}
	var bad []string
	wrong := func() []string { return []string{fmt.Sprintf("%s: %T is no %s", at, v, s.Type)} }
	switch s.Type {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			return wrong()
		}
		for _, k := range s.Required {
			if _, ok := m[k]; !ok {
				bad = append(bad, at+": no "+k)
			}
		}
		for k, e := range m {
			p, ok := s.Properties[k]
			if !ok {
				bad = append(bad, at+": no such property: "+k)
				continue
			}
			bad = append(bad, d.value(at+"."+k, p, e)...)
		}
	case "array":
		l, ok := v.([]any)
		if !ok {
			return wrong()
		}
		for i, e := range l {
			bad = append(bad, d.value(fmt.Sprintf("%s[%d]", at, i), s.Items, e)...)
		}
	case "string":
		if _, ok := v.(string); !ok {
			return wrong()
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			return wrong()
		}
	case "integer":
		f, ok := v.(float64)
		if !ok || f != float64(int64(f)) {
			return wrong()
		}
		if s.Minimum != nil && f < *s.Minimum || s.Maximum != nil && f > *s.Maximum {
			bad = append(bad, fmt.Sprintf("%s: %v is out of range", at, f))
		}
	default:
		return []string{at + ": a schema of type " + s.Type}
	}
	if len(s.Enum) > 0 && !slices.Contains(s.Enum, v) {
		bad = append(bad, fmt.Sprintf("%s: %v is none of %v", at, v, s.Enum))
	}
	return bad
}

// TestPublishedAPI compares everything that the driver sends in the life of a
// machine and its clone with the published description.
func TestPublishedAPI(t *testing.T) {
	d := published(t)
	for _, v := range []string{"1.12.1", "1.17.0"} {
		f := &fake{Version: v, Log: filepath.Join(t.TempDir(), "requests")}
		t.Run(v, func(t *testing.T) { life(t, f) })
		all := f.requests(t)
		if len(all) < 14 {
			t.Errorf("%s: %d requests only", v, len(all))
		}
		for _, r := range all {
			for _, bad := range d.check(r) {
				t.Errorf("%s: %s %s %s: %s", v, r.Method, r.Path, r.Body, bad)
			}
		}
	}
	// What is only sent with a network, which takes root, is checked in any case.
	for _, r := range []struct {
		path string
		body any
	}{
		{"/network-interfaces/eth0", apiNetworkInterface{IfaceID: "eth0", HostDevName: tapName, GuestMAC: "52:54:00:68:65:61"}},
		{"/snapshot/load", apiSnapshotLoad{SnapshotPath: "a", MemBackend: apiMemoryBackend{"File", "b"},
			NetworkOverrides: []apiNetworkOverride{{"eth0", tapName}}, VsockOverride: &apiVsockOverride{vsockName}}},
	} {
		b, err := json.Marshal(r.body)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range d.check(seen{"PUT", r.path, b}) {
			t.Errorf("%s %s: %s", r.path, b, bad)
		}
	}
	// A check that finds nothing wrong with anything would pass too.
	for body, want := range map[string]string{
		`{"vcpu_count":1}`:                                          "no mem_size_mib",
		`{"vcpu_count":33,"mem_size_mib":64}`:                       "out of range",
		`{"vcpu_count":"1","mem_size_mib":64}`:                      "is no integer",
		`{"vcpu_count":1,"mem_size_mib":64,"colour":1}`:             "no such property: colour",
		`{"vcpu_count":1,"mem_size_mib":64,"huge_pages":"4M"}`:      "is none of",
		`{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"Z"}`:     "is none of",
		`{"vcpu_count":1,"mem_size_mib":64,"track_dirty_pages":""}`: "is no boolean",
	} {
		if bad := d.check(seen{"PUT", "/machine-config", json.RawMessage(body)}); len(bad) != 1 || !strings.Contains(bad[0], want) {
			t.Errorf("%s: %q", body, bad)
		}
	}
	if bad := d.check(seen{"PUT", "/nothing", nil}); len(bad) != 1 {
		t.Error(bad)
	}
	if bad := d.check(seen{"PATCH", "/vsock", nil}); len(bad) != 1 {
		t.Error(bad)
	}
}
