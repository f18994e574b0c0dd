"""Trust: who said it (keys, signed envelopes) and what was checked (`VerifiedRelease`)."""
