package prompt

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/workflow"
)

// This file holds a model's answer against the request: what the workflow reaches
// for has to be named by the request, or be implied by what the parser of
// phrases makes out of it. The parser need not understand all of a request for
// that: the fragments that it recognises tell what is asked for.

// implied is what a request asks for beyond the words that stand in it.
type implied struct {
	words     map[string]bool // of the request, lower case
	fragments map[string]bool
	text      string // of the request, lower case
	lex       *lexicon
}

func impliedBy(request string) implied {
	im := implied{words: map[string]bool{}, fragments: map[string]bool{}, text: strings.ToLower(request), lex: theLexicon()}
	c := newChart(theGrammar(), request)
	for _, t := range c.ts {
		im.words[t.word] = true
		im.words[strings.ToLower(t.text)] = true
		for w := range strings.FieldsFuncSeq(strings.ToLower(t.text), func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') &&
				r != '-' && r != '_'
		}) {
			im.words[w] = true
			for part := range strings.SplitSeq(w, "_") {
				im.words[part] = true
			}
		}
	}
	if len(c.ts) <= maxTokens {
		for _, n := range c.cover() {
			base, _, _ := strings.Cut(n.name, ".")
			im.fragments[base] = true
		}
	}
	return im
}

func (im implied) says(words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return im.words[w] })
}

var (
	hosts   = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://(?:[^/@\s]*@)?([a-z0-9.-]+|\[[0-9a-f:]+\])|\b[\w.-]+@([a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,})\b`)
	address = regexp.MustCompile(`\b\d{1,3}(?:\.\d{1,3}){3}\b`)
	secret  = regexp.MustCompile(`(?i)\bsecrets\s*\.\s*([A-Za-z_]\w*)`)
	vault   = regexp.MustCompile(`(?i)\bsecrets\s*(?:\[|\)|,|\.\s*\*|:\s*inherit)|toJSON\s*\(\s*secrets|ACTIONS_(?:RUNTIME|ID_TOKEN)`)
	ownKey  = regexp.MustCompile(`(?i)github\s*\.\s*token|\bGITHUB_TOKEN\b`)
	post    = regexp.MustCompile(`\bcurl\b`)
	danger  = regexp.MustCompile(`(?i)\b(?:wget|nc|ncat|netcat|telnet|base64|socat|ssh|scp|sftp|rsync|ftp|printenv|eval|crontab|mkfs|dd|xxd|openssl|nslookup|dig|sudo)\b`)
	reaches = regexp.MustCompile(`(?i)\b(?:git\s+push|npm\s+publish|docker\s+push|cargo\s+publish|twine\s+upload|gh\s+(?:release|secret|api|repo|auth|pr|issue|workflow))\b|/dev/(?:tcp|udp)/|\|\s*(?:ba|z|da)?sh\b|\$\(\s*env\s*\)|\benv\s*[|>]|\brm\s+-[a-z]*[rf][a-z]*\s+(?:/|~|\$HOME)`)
)

// impliedHosts are the hosts that go with what a request speaks of.
var impliedHosts = map[string][]string{
	"registry.npmjs.org": {"npm", "yarn", "pnpm"}, "npm.pkg.github.com": {"npm"}, "upload.pypi.org": {"pypi", "twine"}, "pypi.org": {"pypi",
		"twine"}, "test.pypi.org": {"testpypi"},
	"api.nuget.org": {"nuget"}, "ghcr.io": {"ghcr"}, "users.noreply.github.com": {"commit", "git"},
}

// unasked names what a workflow reaches for that the request did not speak of.
func unasked(w *workflow.Workflow, yaml, request string) string {
	im := impliedBy(request)
	var out []string
	add := func(s string) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	im.secrets(yaml, add)
	for _, m := range hosts.FindAllStringSubmatch(yaml, -1) {
		host := strings.ToLower(m[1] + m[2])
		if !strings.Contains(im.text, host) && !im.says(impliedHosts[host]...) {
			add("it speaks to " + host + ", which the request does not name")
		}
	}
	for _, ip := range address.FindAllString(yaml, -1) {
		if !strings.Contains(im.text, ip) {
			add("it holds the address " + ip + ", which the request does not name")
		}
	}
	for _, p := range danger.FindAllString(yaml, -1) {
		if !im.words[strings.ToLower(p)] {
			add("it uses " + p + ", which the request does not name")
		}
	}
	for _, p := range reaches.FindAllString(yaml, -1) {
		if !strings.Contains(im.text, strings.ToLower(strings.Join(strings.Fields(p), " "))) {
			add("it uses " + p + ", which the request does not name")
		}
	}
	im.permissions(w.Permissions, "it", add)
	for _, t := range w.On {
		switch t.Event {
		case "pull_request_target":
			if !strings.Contains(im.text, t.Event) {
				add("it is triggered by " + t.Event + ", which the request does not name")
			}
		case "workflow_run":
			if !strings.Contains(im.text, t.Event) && !im.fragments["otherrun"] {
				add("it is triggered by " + t.Event + ", which the request does not ask for")
			}
		}
	}
	for _, j := range w.Jobs {
		im.permissions(j.Permissions, "job "+j.ID, add)
		if j.Uses != "" && !strings.Contains(im.text, strings.ToLower(j.Uses)) {
			add("job " + j.ID + " calls another workflow, " + j.Uses)
		}
		for s := range workflow.EachStep(j.Steps) {
			if s.Uses != "" && !im.action(s.Uses) {
				add("it uses the action " + s.Uses + ", which the request does not name")
			}
			if s.Run != nil && post.MatchString(s.Run.Str) && !im.words["curl"] && !im.message(s) {
				add("it uses curl, which the request does not name")
			}
		}
	}
	return strings.Join(out, "\n")
}

// secrets holds the secrets of a workflow against those that the request names,
// or that are called after something in it: SLACK_WEBHOOK_URL in "post to Slack".
func (im implied) secrets(yaml string, add func(string)) {
	if vault.MatchString(yaml) {
		add("it reads secrets as a whole, or the runner's own tokens")
	}
	for _, m := range secret.FindAllStringSubmatch(yaml, -1) {
		name := m[1]
		if strings.EqualFold(name, "GITHUB_TOKEN") {
			continue
		}
		if !im.secretNamed(name) {
			add("it uses the secret " + name + ", which the request does not speak of")
		}
	}
	if ownKey.MatchString(yaml) && !im.says("token", "github_token", "gh", "release", "pages", "ghcr", "packages", "comment", "goreleaser",
		"issue", "label") && !strings.Contains(im.text, "github token") {
		add("it uses the job's token; the request does not speak of any")
	}
}

// common parts of secrets' names, which tell nothing about what they are for.
var commonParts = set("token key url secret secrets webhook password pass api user username id hook the deploy access auth github gh for in to is main test build run env prod")

func (im implied) secretNamed(name string) bool {
	lower := strings.ToLower(name)
	if im.words[lower] {
		return true
	}
	if regexp.MustCompile(`\b[a-z]+_[a-z_]+\b`).MatchString(im.text) && im.says("secret", "secrets") {
		return false // the request names its secrets
	}
	if !im.says("secret", "secrets", "token", "password", "credentials", "key") && !im.fragments["notify"] {
		return false
	}
	for part := range strings.SplitSeq(lower, "_") {
		if len(part) >= 3 && !commonParts[part] && im.words[part] {
			return true
		}
	}
	return false
}

// permissions holds permissions against what the request implies. To take
// permissions away needs no asking.
func (im implied) permissions(p *workflow.Permissions, whose string, add func(string)) {
	if p == nil || im.says("permission", "permissions") {
		return
	}
	if p.All != "" && p.All != "read-all" {
		add(whose + " sets permissions to " + p.All + "; the request does not speak of them")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Scopes)) {
		access := p.Scopes[name]
		if access == "read" || access == "none" {
			continue
		}
		var ok bool
		switch name {
		case "pages":
			ok = im.fragments["pages"]
		case "id-token":
			ok = im.fragments["pages"] || im.says("oidc", "aws", "provenance", "attest", "trusted")
		case "contents":
			ok = im.says("goreleaser", "semantic-release") || strings.Contains(im.text, "gh release") || strings.Contains(im.text, "git push") ||
				strings.Contains(im.text, "create a release") || strings.Contains(im.text, "github release") && !strings.Contains(im.text,
				"release is published")
		case "packages":
			ok = im.says("ghcr", "packages") || strings.Contains(im.text, "ghcr.io") || strings.Contains(im.text, "github packages")
		case "pull-requests", "issues":
			ok = im.says("comment", "comments", "label") || strings.Contains(im.text, "gh issue") || strings.Contains(im.text, "gh pr")
		}
		if !ok {
			add(whose + " sets the permission " + name + ": " + access + "; the request does not speak of it")
		}
	}
}

// action says whether the request names an action, or something that it is for.
func (im implied) action(uses string) bool {
	repo, _, _ := strings.Cut(strings.ToLower(uses), "@")
	if strings.HasPrefix(repo, "./") {
		return strings.Contains(im.text, repo)
	}
	if strings.HasPrefix(repo, "actions/") || strings.Contains(im.text, repo) {
		return true
	}
	for _, l := range im.lex.languages {
		setup, _, _ := strings.Cut(strings.ToLower(l.setup), "@")
		if setup == repo && (im.words[l.name] || im.says(l.words...)) {
			return true
		}
	}
	// Tools stand for their languages: "bundle exec rspec" wants Ruby.
	for _, t := range im.lex.tools {
		if !im.says(t.words...) {
			continue
		}
		if l := im.lex.languageNamed(t.language); l != nil {
			if setup, _, _ := strings.Cut(strings.ToLower(l.setup), "@"); setup == repo || slices.Contains(im.lex.actions[l.name], repo) {
				return true
			}
		}
	}
	for w, actions := range im.lex.actions {
		if im.words[w] && slices.Contains(actions, repo) {
			return true
		}
	}
	return false
}

// message says whether a step posts a message that the request asks for, to an
// address that is in a secret, and sends nothing else anywhere: of each curl's
// words, those that are no option and no option's value have to be that address.
func (im implied) message(s *workflow.Step) bool {
	if !im.fragments["notify"] && !im.says("slack", "discord", "teams", "webhook", "mattermost") {
		return false
	}
	run := s.Run.Str
	if run == "" || strings.ContainsAny(run, "`<@") || strings.Contains(run, "$(") {
		return false
	}
	if s.Run.Kind == workflow.Expression {
		// format('curl … {0}', secrets.X)
		m := formatted.FindStringSubmatch(run)
		if m == nil {
			return false
		}
		values := strings.Split(m[2], ",")
		run = placeholder.ReplaceAllStringFunc(strings.ReplaceAll(m[1], "''", "'"), func(p string) string {
			if i := int(p[1] - '0'); i < len(values) && secret.MatchString(values[i]) {
				return secretMark
			}
			return "github"
		})
	}
	for line := range strings.SplitSeq(strings.ReplaceAll(run, "\\\n", " "), "\n") {
		_, args, ok := strings.Cut(line, "curl")
		if !ok {
			continue
		}
		targets := 0
		words := shellWord.FindAllString(args, -1)
		for i := 0; i < len(words); i++ {
			w := strings.Trim(words[i], `"'`)
			switch {
			case takesValue.MatchString(words[i]):
				i++
			case strings.HasPrefix(words[i], "-"):
				if strings.ContainsAny(words[i], "=$") || strings.HasPrefix(words[i], "--upload") || strings.HasPrefix(words[i], "-T") {
					return false
				}
			case w == secretMark:
				targets++
			case variable.MatchString(w):
				v := s.Env.Get(variable.FindStringSubmatch(w)[1])
				if v == nil || !secret.MatchString(v.Str) {
					return false
				}
				targets++
			default:
				return false
			}
		}
		if targets != 1 {
			return false
		}
	}
	return true
}

const secretMark = "\x01"

var (
	formatted   = regexp.MustCompile(`(?s)^format\('(.*)',([^']*)\)$`)
	placeholder = regexp.MustCompile(`\{\d\}`)
	shellWord   = regexp.MustCompile(`(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'])+`)
	takesValue  = regexp.MustCompile(`^(?:-[a-zA-Z]*[XHd]|--(?:request|header|data|data-raw|data-binary|json|retry|max-time))$`)
	variable    = regexp.MustCompile(`^\$\{?(\w+)\}?$`)
)
