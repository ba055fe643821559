package main

import (
	"testing"

	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/session"
)

// The settings take no life of a session that it would not have.
func TestSettingsKnowTheLimits(t *testing.T) {
	if config.MaxSessionTTL != session.MaxTTL {
		t.Errorf("settings: %v, sessions: %v", config.MaxSessionTTL, session.MaxTTL)
	}
}
