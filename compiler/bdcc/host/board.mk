# SPDX-License-Identifier: 0BSD
# Behind a project's Makefile: the program that times it. MODEL, INPUTS, OUTPUTS: as board.c takes them.
board: board.c $(BUILD)/lib$(MODEL).a
	$(COMPILE) -DMODEL=$(MODEL) -DHEADER='"$(MODEL).h"' -DINPUTS=$(INPUTS) -DOUTPUTS=$(OUTPUTS) \
	  $(if $(filter 1,$(THREADS)),-DTHREADED) $< $(LDFLAGS) $(BUILD)/lib$(MODEL).a -o $@ $(LIBS)
