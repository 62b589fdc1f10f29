# SPDX-License-Identifier: Apache-2.0
"""Figures and binaural audio for people to look at and listen to.

binauralize  stereo WAV for headphones from a scene or an FOA file
plot_answer  figure of an answer: detected sources in space and time
plot_room    figure of a room: plan, impulse response, decay, energy by direction
style        colours and the spectrogram shared by all figures
"""
