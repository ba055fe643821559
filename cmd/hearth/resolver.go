package main

import "github.com/hearth-ci/hearth/internal/action"

// resolver brings actions and workflows of other repositories.
func (a *app) resolver(o runOptions) (*action.Resolver, error) { return nil, nil }
