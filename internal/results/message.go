package results

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// message is the JSON form of a protobuf message, of which only the fields that are
// asked for are read. Their names come as in the .proto file or in lowerCamelCase;
// 64-bit integers as strings or numbers; wrappers as what they wrap.
type message map[string]json.RawMessage

const (
	maxRequest = 256 << 10
	maxText    = 4096 // bytes of any text in a request
)

func parseMessage(b []byte) (message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, refuse(malformed, "the request is no JSON object: %v", err)
	}
	return m, nil
}

func (m message) field(name string) (json.RawMessage, bool) {
	v, ok := m[name]
	if !ok {
		v, ok = m[camel(name)]
	}
	return v, ok && string(v) != "null"
}

func camel(name string) string {
	words := strings.Split(name, "_")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

func (m message) text(name string) (string, error) {
	v, ok := m.field(name)
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil {
		return "", refuse(malformed, "%s is no string", name)
	}
	return s, checkText(name, s)
}

func checkText(name, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError) {
		return refuse(invalidArgument, "%s is longer than %d bytes, or no UTF-8", name, maxText)
	}
	return nil
}

func (m message) texts(name string, most int) ([]string, error) {
	v, ok := m.field(name)
	if !ok {
		return nil, nil
	}
	var all []string
	if err := json.Unmarshal(v, &all); err != nil {
		return nil, refuse(malformed, "%s is no list of strings", name)
	}
	if len(all) > most {
		return nil, refuse(invalidArgument, "%s has more than %d values", name, most)
	}
	for _, s := range all {
		if err := checkText(name, s); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// number is -1 if the field is not there.
func (m message) number(name string) (int64, error) {
	v, ok := m.field(name)
	if !ok {
		return -1, nil
	}
	n, err := strconv.ParseInt(strings.Trim(string(v), `"`), 10, 64)
	if err != nil || n < 0 {
		return 0, refuse(malformed, "%s is no number, or less than none", name)
	}
	return n, nil
}

func (m message) time(name string) (time.Time, error) {
	s, err := m.text(name)
	if err != nil || s == "" {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, refuse(malformed, "%s is no time: %v", name, err)
	}
	return t, nil
}

// code is one of Twirp's.
type code struct {
	name   string
	status int
}

var (
	malformed         = code{"malformed", 400}
	invalidArgument   = code{"invalid_argument", 400}
	unauthenticated   = code{"unauthenticated", 401}
	permissionDenied  = code{"permission_denied", 403}
	notFound          = code{"not_found", 404}
	badRoute          = code{"bad_route", 404}
	alreadyExists     = code{"already_exists", 409}
	resourceExhausted = code{"resource_exhausted", 429}
	internalError     = code{"internal", 500}
)

// refusal is an error that the client is told.
type refusal struct {
	code code
	msg  string
}

func (r *refusal) Error() string { return r.msg }

func refuse(c code, format string, args ...any) error {
	return &refusal{c, fmt.Sprintf(format, args...)}
}
