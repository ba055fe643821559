package learn

import (
	"math"
	"strings"
)

// FTRL-proximal over the tokens of names.
const (
	ftrlAlpha  = .1
	ftrlBeta   = 1.0
	ftrlL1     = .2
	ftrlL2     = 1.0
	maxTokens  = 24
	tokenBatch = .85 // a batch of n outcomes teaches as much as n^(1-tokenBatch)
)

func (m *Model) tokenWeight(w *weight) float64 {
	if math.Abs(w.v) <= ftrlL1 {
		return 0
	}
	return -(w.v - math.Copysign(ftrlL1, w.v)) / ((ftrlBeta+math.Sqrt(w.g))/ftrlAlpha + ftrlL2)
}

func (m *Model) tokenLogit(tokens []uint64) float64 {
	s := 0.0
	for _, t := range tokens {
		if w := m.tokens[t]; w != nil {
			s += m.tokenWeight(w)
		}
	}
	return min(max(s, -8), 8)
}

func (m *Model) tokenLearn(tokens []uint64, y, scale float64) {
	g := (sigmoid(m.tokenLogit(tokens)) - y) * scale
	for _, t := range tokens {
		w := m.tokens[t]
		if w == nil {
			if len(m.tokens) >= m.limit {
				m.dirty.mark(&m.dirty.tokens, evict(m.tokens, func(w *weight) float64 { return w.g }))
			}
			w = &weight{}
			m.tokens[t] = w
		}
		v := m.tokenWeight(w)
		sigma := (math.Sqrt(w.g+g*g) - math.Sqrt(w.g)) / ftrlAlpha
		w.v += g - sigma*v
		w.g += g * g
		m.dirty.mark(&m.dirty.tokens, t)
	}
}

// tokensOf splits the names of an execution into hashed words, each under the
// field it comes from.
func tokensOf(x *Execution) []uint64 {
	out := make([]uint64, 1, maxTokens)
	out[0] = hash(fnvOffset, "bias")
	for _, f := range [...]struct{ field, text string }{
		{"r", x.Repo}, {"w", x.Workflow}, {"j", x.Job}, {"s", x.Step}, {"h", x.Host}, {"a", x.Action},
	} {
		if f.text == "" {
			continue
		}
		field := hash(fnvOffset, f.field)
		start := -1
		for i := 0; i <= len(f.text); i++ {
			if i < len(f.text) && isWord(f.text[i]) {
				if start < 0 {
					start = i
				}
				continue
			}
			if start >= 0 {
				if len(out) == maxTokens {
					return out
				}
				out = append(out, hash(field, strings.ToLower(f.text[start:i])))
				start = -1
			}
		}
	}
	return out
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c >= 0x80
}
