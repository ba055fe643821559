package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Registry is a container registry that jobs' images come from: where it is, if that
// is not https:// and its name, and who asks, if it wants to know. In the settings it
// is an address, or an object.
type Registry struct {
	URL      string `json:"url,omitempty"`
	Username string `json:"username,omitempty"`
	// PasswordFile is the file with the password; it is never in the settings
	// themselves.
	PasswordFile string `json:"password_file,omitempty"`
	Password     string `json:"-"`
}

// UnmarshalJSON reads "http://localhost:5001" or an object.
func (r *Registry) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &r.URL) == nil {
		return nil
	}
	type plain Registry
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode((*plain)(r)); err != nil {
		return fmt.Errorf("a registry is an address or an object with url, username and password_file: %w", err)
	}
	return nil
}

// passwords reads the files of registries' passwords.
func (c *Config) passwords() error {
	var errs []error
	for name, r := range c.Registries {
		if (r.Username == "") != (r.PasswordFile == "") {
			errs = append(errs, fmt.Errorf("registry %s: username and password_file go together", name))
			continue
		}
		if r.PasswordFile == "" {
			continue
		}
		b, err := os.ReadFile(r.PasswordFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("registry %s: reading a secret: %w", name, err))
			continue
		}
		r.Password = strings.TrimRight(string(b), "\r\n")
		c.Registries[name] = r
	}
	return errors.Join(errs...)
}
